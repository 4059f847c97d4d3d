"""What runs the rooms: settings, the local stack, the `millrace` command, images and decisions."""
