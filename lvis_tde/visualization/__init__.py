"""One palette, charts, pictures of detections."""
