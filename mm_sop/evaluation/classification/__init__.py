"""Classification of frozen and fine-tuned features."""
