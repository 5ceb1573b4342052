"""Tools beside the training: the learning rate finder, the report, the doctor. No other room imports them."""
