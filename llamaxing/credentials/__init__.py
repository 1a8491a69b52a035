"""What we show to the servers that we call ourselves."""
