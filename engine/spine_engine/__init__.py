"""spine-engine: grades lumbar-spine MRI in bulk. Research use only; not a medical device."""
