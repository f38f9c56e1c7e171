"""The roles put together as services, and as ``twistd`` starts them."""
