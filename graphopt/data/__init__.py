"""Datasets, preprocessing and synthetic images. Import the module that you need; this one stays cheap."""
