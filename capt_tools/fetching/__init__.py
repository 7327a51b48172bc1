"""What ``capt get-data`` is made of."""
