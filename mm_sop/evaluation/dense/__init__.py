"""Dense prediction: segmentation and video."""
