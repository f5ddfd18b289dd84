"""Keras models for the DeepExplainer of shap's that explains TensorFlow."""
