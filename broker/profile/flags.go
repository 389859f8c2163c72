package profile

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"mvm/wsdl"
)

// Nodes refuse what is refused here, in the same words (node/build): said at
// submission it costs nobody a try.

// refusedFlags are the flags of a language that would run other programs, write
// elsewhere, or give no program: those refused as they stand, and those whose
// beginning is enough.
func refusedFlags(language wsdl.Language) (whole, beginnings []string) {
	switch language {
	case wsdl.LanguageC, wsdl.LanguageCpp:
		return []string{"-E", "-S", "-c", "-r", "-shared", "-###", "-load", "-Xclang", "--compile", "--assemble", "--preprocess", "--coverage"},
			[]string{"-o", "--output", "-wrapper", "-fplugin", "-fpass-plugin", "-specs", "--specs", "-B", "-M", "-x", "-T", "-save-temps",
				"--save-temps", "-dump", "-fdump", "-ftest-coverage", "-fprofile", "-gsplit", "-run"}
	case wsdl.LanguageGo_:
		return []string{"-a", "-n", "-x", "-work", "-json", "-race", "-msan", "-asan", "-cover", "-linkshared", "-modcacherw"},
			[]string{"-o=", "-C=", "-p=", "-toolexec=", "-overlay=", "-mod=", "-modfile=", "-pkgdir=", "-exec=", "-compiler=", "-gccgoflags=",
				"-buildmode=", "-installsuffix=", "-pgo="}
	case wsdl.LanguagePython:
		return []string{"--", "-"}, []string{"-c", "-m", "-i", "-h", "-V", "--help", "--version"}
	}
	return nil, nil
}

// unfitFlag says why a flag is refused for a language, or "".
func unfitFlag(language wsdl.Language, flag string) string {
	refuse := func(why string) string {
		return fmt.Sprintf("the flag %q is refused for %s: %s", brief(flag), language, why)
	}
	native := language == wsdl.LanguageC || language == wsdl.LanguageCpp
	plain := flag
	if language == wsdl.LanguageGo_ { // it takes -flag and --flag for the same
		plain = "-" + strings.TrimLeft(flag, "-")
	}
	whole, beginnings := refusedFlags(language)
	switch {
	case flag == "" || strings.ContainsAny(flag, "\x00\n\r"):
		return refuse("it is empty or has a control character")
	case strings.HasPrefix(flag, "@") || !native && !strings.HasPrefix(flag, "-"):
		return refuse("it is no flag; list files as files")
	case slices.Contains(whole, plain),
		slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(plain, b) }),
		language == wsdl.LanguageGo_ && slices.Contains(beginnings, plain+"="):
		return refuse("it would run, read or write what the build's key does not cover, or give no program")
	case language == wsdl.LanguageGo_ && (strings.Contains(flag, "-extld") || strings.Contains(flag, "-linkmode")):
		return refuse("Go programs are linked by Go alone")
	case language == wsdl.LanguageShell && (flag == "-" || strings.Trim(flag[1:], "abefhmnuvxC") != ""):
		return refuse("only sh's one-letter options (such as -e, -u, -x) can be given")
	}
	return ""
}

// unfitSource says why a file cannot be part of a source in a language, or "".
func unfitSource(language wsdl.Language, name string) string {
	if base := path.Base(name); language == wsdl.LanguageGo_ && (base == "go.mod" || base == "go.work") {
		return fmt.Sprintf("the file %q is written by MVM itself (module job, with mvm/queuevm/client); leave it out", brief(name))
	}
	return ""
}
