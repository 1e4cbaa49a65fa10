"""Long-tailed instance segmentation for Detectron2 with the total direct effect (TDE).

Tang, Huang and Zhang, "Long-Tailed Classification by Keeping the Good and Removing the Bad
Momentum Causal Effect", NeurIPS 2020.
"""

__version__ = "0.1.0"
