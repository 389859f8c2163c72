package osvm

// ChunkSize is what a checkpoint's blobs hold each.
const ChunkSize = chunkSize

// Pass has a test told of the steps of a capture.
func (m *Machine) Pass(told func(step string)) { m.passing = told }

// KillQEMU ends QEMU as a fault would, and waits until it is gone.
func (m *Machine) KillQEMU() { m.kill() }

// DigestOf names a blob.
func DigestOf(content []byte) string { return digestOf(content) }

// IsManifest says whether a blob is a checkpoint.
func IsManifest(content []byte) bool {
	_, err := parseCheckpoint(content)
	return err == nil
}

// Archive is an initial file system with one program.
func Archive(name, text string) []byte {
	archive, err := pack(map[string]guestFile{name: {0o755, []byte(text)}}, nil)
	if err != nil {
		panic(err)
	}
	return archive
}
