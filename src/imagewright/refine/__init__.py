"""What happens to a picture after the model: each step returns the picture and a record of what it did."""
