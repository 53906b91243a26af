# Two provisioners for a Packer build: paste them into its `build` block, beside install.sh. The build fails when the
# binary is not the pinned one, or does not run on the machine that becomes the image.
variable "impound_sha256" {
  type        = string
  description = "SHA-256 of the binary, from SHA256SUMS of the release."
  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.impound_sha256))
    error_message = "Not a SHA-256 in lower-case hexadecimal."
  }
}

variable "impound_binary" {
  type        = string
  description = "The binary of the release, on the machine that runs Packer."
}

source "null" "example" {
  communicator = "none"
}

build {
  sources = ["source.null.example"] # in your template: your own source

  provisioner "file" {
    source      = var.impound_binary
    destination = "/tmp/impound"
  }

  provisioner "shell" {
    script          = "${path.root}/install.sh"
    execute_command = "sudo sh {{ .Path }} ${var.impound_sha256} /tmp/impound && rm -f /tmp/impound"
  }
}
