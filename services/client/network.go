package client

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// vmNetwork are the flags for the network that a VM is to join.
type vmNetwork struct{ name, file string }

func (n *vmNetwork) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&n.name, "network", "", "join it with the VMs that were made with this `NAME` and the same key")
	cmd.Flags().StringVar(&n.file, "network-key", "", "the `FILE` with the network's key (default: NAME.key in mvm/networks of your configuration, made when there is none)")
}

// given are the network's name and key; both are empty where none is named.
func (n *vmNetwork) given() (name, key string, err error) {
	switch {
	case n.name == "" && n.file != "":
		return "", "", usagef("--network-key %s: a key is a network's: write --network NAME with it", n.file)
	case n.name == "":
		return "", "", nil
	case !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`).MatchString(n.name):
		return "", "", usagef("--network %q: write a letter or digit, then up to 62 letters, digits, '_', '.' or '-'", n.name)
	}
	file := n.file
	if file == "" {
		folder, err := os.UserConfigDir()
		if err != nil {
			return "", "", usagef("there is no place for the key of the network %s: %v; write --network-key FILE", n.name, err)
		}
		file = filepath.Join(folder, "mvm", "networks", n.name+".key")
		if err := makeKey(file); err != nil {
			return "", "", fmt.Errorf("make a key for the network %s: %w", n.name, err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", "", missing(fmt.Errorf("read the key of the network %s: %w", n.name, err))
	}
	if key = strings.TrimSpace(string(text)); len(key) < keyLeast || len(key) > keyMost || !isLine(key) {
		return "", "", usagef("%s has %d bytes and cannot be the key of the network %s: write one line of text of %d to %d bytes that nobody can guess, or leave out --network-key", file, len(key), n.name, keyLeast, keyMost)
	}
	return n.name, key, nil
}

// What nodes take as a key, in bytes.
const keyLeast, keyMost = 16, 256

// isLine says whether a text is one that XML keeps as it is: bytes that are no text would
// all become the same character, and a key of them easy to guess.
func isLine(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// makeKey makes a file with a key that nobody else has, unless it is there. It is there
// when it is whole, also for one who makes it at the same time.
func makeKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	made, err := os.CreateTemp(filepath.Dir(path), ".key-") // which nobody else may read
	if err != nil {
		return err
	}
	defer os.Remove(made.Name())
	_, err = fmt.Fprintln(made, rand.Text())
	if err := errors.Join(err, made.Close()); err != nil {
		return err
	}
	if err := os.Link(made.Name(), path); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
