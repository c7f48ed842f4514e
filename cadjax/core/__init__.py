"""What every room needs: names to objects, files and folders, devices."""
