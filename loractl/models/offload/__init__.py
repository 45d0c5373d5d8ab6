"""Layers whose frozen weights stay on disk and come to memory when they compute."""
