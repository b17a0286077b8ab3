"""How a store written by an older program is brought up, in a transaction, when it is opened."""
