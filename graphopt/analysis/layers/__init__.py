"""Layers with weights as linear problems on images: what they read, as rows; what they hold, as matrices."""
