"""What runs beside or inside TorchServe."""
