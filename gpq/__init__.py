"""GPQ, the second system of this project: product quantization learned from a few labels and many unlabelled images.

Jang and Cho, *Generalized Product Quantization Network for Semi-supervised Image Retrieval*, CVPR 2020.
"""
