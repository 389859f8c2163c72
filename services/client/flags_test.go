package client

import (
	"regexp"
	"testing"

	"github.com/spf13/cobra"
)

// TestFlagsSayTheirValues: what a flag's text quotes first is taken for the name of its
// value, which no command line is.
func TestFlagsSayTheirValues(t *testing.T) {
	value := regexp.MustCompile(`--[a-z-]+ mvm .*`)
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		if said := value.FindString(c.Flags().FlagUsages()); said != "" {
			t.Errorf("%s: %s", c.CommandPath(), said)
		}
		for _, child := range c.Commands() {
			look(child)
		}
	}
	for _, c := range Commands(nil) {
		look(c)
	}
}
