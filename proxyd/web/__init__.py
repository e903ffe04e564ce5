"""The client side: HTTP in, HTTP out."""
