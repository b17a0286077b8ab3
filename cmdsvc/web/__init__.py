"""What comes over HTTP: runs, webhooks, the figures."""
