"""Tests of Keras models."""
