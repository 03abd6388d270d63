"""The push over Redis pub/sub."""
