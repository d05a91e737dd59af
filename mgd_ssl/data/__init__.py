"""Images wherever they lie, their views and crops, and the batches made of them."""
