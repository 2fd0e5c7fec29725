"""The trained example: a small residual network for scikit-learn's handwritten digits, with its images."""
