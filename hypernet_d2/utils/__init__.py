"""Files, images, drawing and checks that need neither detectron2 nor PyTorch."""
