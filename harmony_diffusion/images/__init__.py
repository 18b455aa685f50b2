"""Pictures and masks in and out: files, arrays, colour profiles, EXIF."""
