package client

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"mvm/services/image"
	"mvm/wsdl"
)

func imageCommand(maker ImageMaker) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make images of OS-level VMs, and keep them on the grid",
		Long: `An image is what an OS-level VM starts from: a kernel with its initial file
system, or a disk, named in a manifest by their digests. On this machine it is a
folder with these files and manifest.json; on the grid it is registered under a
name, and each change makes a new version.`,
		Example: `  mvm image build                          # the minimal image, from Debian's packages
  mvm image push minimal
  mvm image ls
  mvm image import debian-12-genericcloud-amd64.qcow2 --name debian --push`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("`mvm image` has the verbs build, import, push, pull, ls, inspect and rm, not %q", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(imageListCommand(), imageInspectCommand(), imagePushCommand(), imagePullCommand(), imageRemoveCommand())
	if maker != nil {
		cmd.AddCommand(imageBuildCommand(maker), imageImportCommand(maker))
	}
	return cmd
}

func imageListCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:     "ls [SEARCH]",
		Aliases: []string{"list"},
		Short:   "List registered images whose name or description contains SEARCH",
		Example: `  mvm image ls
  mvm image ls debian --json`,
		Args: between(0, "SEARCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			images, err := c.Images(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), images)
			}
			t := newTable(cmd.OutOrStdout(), "NAME", "VERSION", "SIZE", "MEMORY", "BUILDS", "REGISTERED", "DESCRIPTION")
			for _, i := range images {
				t.row(i.Name, fmt.Sprint(i.Version), bytesText(imageSize(i)), fmt.Sprintf("%d MiB", i.LeastMemory), imageLanguages(i, " "), timeText(dateOf(i.Registered)), shorten(i.Description, 60))
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	return cmd
}

func imageSize(i *wsdl.Image) (size int64) {
	for _, f := range i.File {
		size += wsdl.Or(f.Size, 0)
	}
	return size
}

func imageLanguages(i *wsdl.Image, between string) string {
	var languages []string
	for _, language := range i.Language {
		languages = append(languages, string(wsdl.Or(language, "")))
	}
	return strings.Join(languages, between)
}

func imageInspectCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "inspect NAME[@VERSION] | FOLDER",
		Short: "Show all that the manifest of an image says",
		Long: `Shows a registered image, the newest version unless one is named; or the image in
a folder, written with a slash (./minimal), whose files are compared with the
manifest.`,
		Example: `  mvm image inspect minimal@2
  mvm image inspect ./minimal`,
		Args: exactly("a NAME or a FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var found *wsdl.Image
			if strings.ContainsRune(args[0], filepath.Separator) {
				m, _, digest, err := image.ReadFolder(args[0])
				if err != nil {
					return err
				}
				for _, f := range m.Files {
					if err := image.CheckFile(args[0], f); err != nil {
						return missing(err)
					}
				}
				found = m.Describe(digest)
			} else {
				name, version, err := imageVersion(args[0])
				if err != nil {
					return err
				}
				c, err := v.dial(cmd)
				if err != nil {
					return err
				}
				if found, _, err = c.Image(cmd.Context(), name, version); err != nil {
					return err
				}
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), found)
			}
			t := newTable(cmd.OutOrStdout())
			line := func(name, value string) {
				if value != "" {
					t.row(name, value)
				}
			}
			name := found.Name
			if found.Version > 0 {
				name = fmt.Sprintf("%s@%d", name, found.Version)
			}
			line("name", name)
			line("digest", found.Digest)
			line("description", found.Description)
			line("release", found.Release)
			line("registered", timeText(dateOf(found.Registered)))
			line("architecture", found.Architecture)
			line("memory", fmt.Sprintf("at least %d MiB", found.LeastMemory))
			line("builds", imageLanguages(found, ", "))
			line("command line", found.CommandLine)
			for _, f := range found.File {
				line(f.Part, strings.TrimSpace(fmt.Sprintf("%s  %s %s", f.Digest, bytesText(wsdl.Or(f.Size, 0)), f.Format)))
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	return cmd
}

// imageVersion reads NAME or NAME@VERSION, 0 for none.
func imageVersion(text string) (string, int, error) {
	name, version, err := nameVersion(text)
	if err != nil {
		return "", 0, usagef("%q: write an image as NAME or NAME@VERSION, versions from 1", text)
	}
	return name, version, nil
}

// pushed uploads and registers the image in a folder and prints its name.
func (v *gridVerb) pushed(cmd *cobra.Command, folder, name string) error {
	c, err := v.dial(cmd)
	if err != nil {
		return err
	}
	p := newProgress(cmd.ErrOrStderr(), false)
	defer p.close()
	registered, err := c.PushImage(cmd.Context(), folder, name, p.uploads())
	p.close()
	if err != nil {
		return missing(err)
	}
	if v.json {
		return writeJSON(cmd.OutOrStdout(), registered)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s@%d\n", printable(registered.Name), registered.Version)
	return nil
}

func imagePushCommand() *cobra.Command {
	var v gridVerb
	var name string
	cmd := &cobra.Command{
		Use:   "push FOLDER",
		Short: "Upload the image in FOLDER and register it",
		Long: `Uploads what the grid lacks of the image, from where an earlier try was cut off,
and registers it under its manifest's name, or another, as a new version. An
image that is registered already keeps its version.`,
		Example: `  mvm image push minimal
  mvm image push minimal --name laboratory`,
		Args: exactly("a FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error { return v.pushed(cmd, args[0], name) },
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&name, "name", "", "register it under `NAME`")
	return cmd
}

func imagePullCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "pull NAME[@VERSION] [FOLDER]",
		Short: "Download an image into FOLDER, or one of its name",
		Long: `Downloads a registered image, the newest version unless one is named, from any
node that has it. Each file is verified; a node that sends other bytes is not
believed, and another one asked. What was cut off goes on where it was.`,
		Example: `  mvm image pull minimal@2
  mvm image pull debian /srv/images/debian`,
		Args: between(1, "a NAME", "FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, version, err := imageVersion(args[0])
			if err != nil {
				return err
			}
			folder := name
			if len(args) > 1 {
				folder = args[1]
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			found, err := c.PullImage(cmd.Context(), name, version, folder)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), found)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s@%d in %s\n", printable(found.Name), found.Version, printable(folder))
			return nil
		},
	}
	v.flags(cmd, true)
	return cmd
}

func imageRemoveCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:     "rm NAME[@VERSION]",
		Aliases: []string{"remove"},
		Short:   "Forget an image: one version, or all that have the name",
		Long: `Forgets an image. Jobs and VMs that use it keep it until they end. The number of
a version that was removed is not used again.`,
		Example: `  mvm image rm minimal@1
  mvm image rm minimal`,
		Args: exactly("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, version, err := imageVersion(args[0])
			if err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			removed, err := c.RemoveImage(cmd.Context(), name, version)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), removed)
			}
			for _, name := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), printable(name))
			}
			return nil
		},
	}
	v.flags(cmd, true)
	return cmd
}

// made is what build and import have in common: where the image goes, and
// whether it is pushed.
type made struct {
	gridVerb
	name, output string
	push         bool
}

func (m *made) flags(cmd *cobra.Command) {
	m.gridVerb.flags(cmd, true)
	cmd.Flags().StringVar(&m.name, "name", "", "call the image `NAME`")
	cmd.Flags().StringVarP(&m.output, "output", "o", "", "write it to `FOLDER` (default: its name)")
	cmd.Flags().BoolVar(&m.push, "push", false, "push it to the grid; without --output nothing stays here")
}

// run makes an image by make in the folder that is asked for.
func (m *made) run(cmd *cobra.Command, name string, make func(folder string) (*image.Manifest, error)) (err error) {
	name = cmp.Or(m.name, name)
	folder := cmp.Or(m.output, name)
	if m.push && m.output == "" {
		if folder, err = os.MkdirTemp("", "mvm-image-"); err != nil {
			return err
		}
		defer os.RemoveAll(folder)
	} else if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	// Beside what is there, which stays whole until this is.
	making, err := os.MkdirTemp(folder, ".making-")
	if err != nil {
		return err
	}
	defer func() {
		_ = os.RemoveAll(making)
		if err != nil {
			_ = os.Remove(folder) // unless it has held something before
		}
	}()
	manifest, err := make(making)
	if err != nil {
		return err
	}
	manifest.Name = name
	digest, err := image.Seal(making, manifest)
	if err != nil {
		return err
	}
	if err := image.Install(folder, making); err != nil {
		return err
	}
	if m.push {
		return m.pushed(cmd, folder, "")
	}
	if m.json {
		return writeJSON(cmd.OutOrStdout(), manifest.Describe(digest))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s in %s: %s, %s\n", printable(name), printable(folder), bytesText(manifest.Size()), digest)
	return nil
}

func imageBuildCommand(maker ImageMaker) *cobra.Command {
	var m made
	var gcc bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make the minimal image from Debian's packages",
		Long: `Fetches Debian's packages by apt-get, as they are set up on this machine, and
makes the minimal image of them: kernel, busybox, tcc with musl, and mvm as the
first program. The same packages and the same mvm give the same digest. With
--gcc a disk with gcc, g++ and binutils is added.`,
		Example: `  mvm image build
  mvm image build --gcc --name laboratory --output /srv/images/laboratory
  mvm image build --push --grid http://10.0.0.7:7480`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			name := "minimal"
			if gcc {
				name = "gcc"
			}
			return m.run(cmd, name, func(folder string) (*image.Manifest, error) { return maker.Build(cmd.Context(), folder, gcc) })
		},
	}
	m.flags(cmd)
	cmd.Flags().BoolVar(&gcc, "gcc", false, "add a disk with gcc, g++ and binutils")
	return cmd
}

func imageImportCommand(maker ImageMaker) *cobra.Command {
	var m made
	cmd := &cobra.Command{
		Use:   "import DISK",
		Short: "Make an image of a stock cloud image, as it is",
		Long: `Makes an image of a cloud image's disk, qcow2 or raw: it is not changed. A seed
disk is put beside it, which cloud-init (its NoCloud source) takes mvm from at
the first start and runs it as a service. The disk must have all that its boot
loader needs; a qcow2 file that refers to other files is refused.`,
		Example: `  mvm image import debian-12-genericcloud-amd64.qcow2 --name debian
  mvm image import jammy-server-cloudimg-amd64.img --name ubuntu --push`,
		Args:              exactly("a DISK"),
		ValidArgsFunction: completeFiles("qcow2", "img", "raw"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.name == "" {
				return usagef("an imported image has no name of its own: give one with --name")
			}
			return m.run(cmd, m.name, func(folder string) (*image.Manifest, error) {
				made, err := maker.Import(cmd.Context(), folder, args[0])
				return made, missing(err)
			})
		},
	}
	m.flags(cmd)
	return cmd
}
