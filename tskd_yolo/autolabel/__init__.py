"""A teacher's labels for images that have none, as a data set with what a person needs to review them."""
