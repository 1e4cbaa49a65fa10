"""Classifier, running mean, box predictor and ROI heads."""
