"""PyTorch models, one a district, for serve_pytorch_s3.py: the model, and its bytes."""
