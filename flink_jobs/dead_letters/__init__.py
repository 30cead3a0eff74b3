"""What failed and is kept: the fallback store's folder, and sending it again."""
