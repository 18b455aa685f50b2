"""Harmonize thousands of pictures: resumable, in several processes, on several machines."""
