"""After training: the mean of a trained model, the strength of TDE, and what TDE did."""
