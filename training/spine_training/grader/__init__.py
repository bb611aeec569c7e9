"""The level grader: crops of phantom studies in, severity probabilities out; training and evaluation."""
