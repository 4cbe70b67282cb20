"""Runs exported models; imports neither detectron2 nor the training code."""
