"""A trained run at work: predictions of images, and the reasons for them."""
