package build

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Check refuses what is no source of a language: names that leave the folder
// or that a compiler could take for something else, and flags that reach past
// the files. It needs no file and no compiler, and names all it refuses.
func Check(language string, flags []string, files []File) error {
	var problems []error
	if !slices.Contains([]string{C, CPP, Go, Python, Shell}, language) {
		problems = append(problems, fmt.Errorf("the language %q is none of c, cpp, go, python, shell", language))
	}
	if len(files) == 0 {
		problems = append(problems, errors.New("it has no files"))
	}
	seen := map[string]bool{}
	for _, f := range files {
		if err := CheckName(f.Name); err != nil {
			problems = append(problems, err)
		} else if seen[f.Name] {
			problems = append(problems, fmt.Errorf("the file %q comes twice", f.Name))
		} else if language == Go && (path.Base(f.Name) == "go.mod" || path.Base(f.Name) == "go.work") {
			problems = append(problems, fmt.Errorf("the file %q is written by MVM itself (module job, with mvm/queuevm/client); leave it out", f.Name))
		}
		seen[f.Name] = true
	}
	for _, flag := range flags {
		if err := checkFlag(language, flag); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// CheckName accepts a relative name with slashes that stays below its folder
// and that no program can take for a flag or a list of more names.
func CheckName(name string) error {
	refuse := func(why string) error { return fmt.Errorf("the file name %q is refused: %s", name, why) }
	switch {
	case name == "":
		return refuse("it is empty")
	case len(name) > 255:
		return refuse("it is longer than 255 bytes")
	case strings.HasPrefix(name, "/"):
		return refuse("it is absolute; give it relative to the source")
	case path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return refuse("it is not in its shortest form below the source's folder")
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == '\\' || r == '\uFFFD' || strings.ContainsRune(`"'`+"`$*?;|&<>", r) {
			return refuse(fmt.Sprintf("it contains %q", r))
		}
	}
	for _, element := range strings.Split(name, "/") {
		if strings.ContainsRune("-@.~", rune(element[0])) {
			return refuse(fmt.Sprintf("%q begins with %q", element, element[0]))
		}
	}
	return nil
}

// refused lists the flags of a language that would run other programs, write
// elsewhere, or give no program: those refused as they stand, and those whose
// beginning is enough. They go so that an artifact depends on its key alone.
func refused(language string) (whole, beginnings []string) {
	switch language {
	case C, CPP:
		return []string{"-E", "-S", "-c", "-r", "-shared", "-###", "-load", "-Xclang", "--compile", "--assemble", "--preprocess", "--coverage"},
			[]string{"-o", "--output", "-wrapper", "-fplugin", "-fpass-plugin", "-specs", "--specs", "-B", "-M", "-x", "-T", "-save-temps",
				"--save-temps", "-dump", "-fdump", "-ftest-coverage", "-fprofile", "-gsplit", "-run"}
	case Go:
		return []string{"-a", "-n", "-x", "-work", "-json", "-race", "-msan", "-asan", "-cover", "-linkshared", "-modcacherw"},
			[]string{"-o=", "-C=", "-p=", "-toolexec=", "-overlay=", "-mod=", "-modfile=", "-pkgdir=", "-exec=", "-compiler=", "-gccgoflags=",
				"-buildmode=", "-installsuffix=", "-pgo="}
	case Python:
		return []string{"--", "-"}, []string{"-c", "-m", "-i", "-h", "-V", "--help", "--version"}
	}
	return nil, nil
}

func checkFlag(language, flag string) error {
	refuse := func(why string) error { return fmt.Errorf("the flag %q is refused for %s: %s", flag, language, why) }
	native := language == C || language == CPP
	plain := flag
	if language == Go { // it takes -flag and --flag for the same
		plain = "-" + strings.TrimLeft(flag, "-")
	}
	whole, beginnings := refused(language)
	switch {
	case flag == "" || strings.ContainsAny(flag, "\x00\n\r"):
		return refuse("it is empty or has a control character")
	case strings.HasPrefix(flag, "@") || !native && !strings.HasPrefix(flag, "-"):
		return refuse("it is no flag; list files as files")
	case slices.Contains(whole, plain),
		slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(plain, b) }),
		language == Go && slices.Contains(beginnings, plain+"="):
		return refuse("it would run, read or write what the build's key does not cover, or give no program")
	case language == Go && (strings.Contains(flag, "-extld") || strings.Contains(flag, "-linkmode")):
		return refuse("Go programs are linked by Go alone")
	case language == Shell && (flag == "-" || strings.Trim(flag[1:], "abefhmnuvxC") != ""):
		return refuse("only sh's one-letter options (such as -e, -u, -x) can be given")
	}
	return nil
}
