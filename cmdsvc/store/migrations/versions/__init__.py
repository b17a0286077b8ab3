"""A file for each change of the schema. None is altered once released: stores were made by it."""
