"""Object detection: data in COCO's format, RetinaNet and Faster R-CNN, average precision."""
