"""What registers with Detectron2: box predictor, ROI heads, mask heads; and the swap."""
