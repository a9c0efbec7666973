"""Fine-tuning of a pretrained network to a CAM network of other classes."""
