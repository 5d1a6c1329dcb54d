package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	stampFile = "build.stamp"

	// A build with cold caches was measured to leave 4.1 GB in the build cache and 1.3 GB
	// of modules, and to link in 3.3 GB of memory.
	coldPackages  = 500 // more packages to compile than this is a cold build
	coldDiskBytes = 6 << 30
	warmDiskBytes = 1 << 30

	availableReason = "not installed but available in build cache"
)

// build is one way to compile the binaries: from which sources, with which flags,
// to which folder.
type build struct {
	release
	source   string // the module hyperkube
	out      string
	progress *progress
}

// newBuild returns the build of the version that the environment asks for.
func newBuild(out string) (*build, error) {
	wanted, err := controlplane.ParseWanted(os.Getenv(controlplane.VersionEnv))
	if err != nil {
		return nil, err
	}
	source, err := sourceFolder()
	if err != nil {
		return nil, err
	}
	chosen, err := chooseRelease(source, wanted)
	if err != nil {
		return nil, err
	}
	out, err = outputFolder(out, "k8s", chosen.version)
	if err != nil {
		return nil, err
	}
	if chosen.derived {
		chosen.modFile = filepath.Join(out, derivedModFile)
	}
	return &build{release: chosen, source: source, out: out, progress: newProgress(os.Stderr)}, nil
}

func sourceFolder() (string, error) {
	root, err := controlplane.RepositoryRoot()
	return filepath.Join(root, "hack", "cluster", "hyperkube"), err
}

// run compiles the binaries unless those in place are of the same sources,
// flags and toolchain.
func (b *build) run(ctx context.Context) error {
	stamp, err := b.stamp()
	if err != nil {
		return err
	}
	if b.fresh(stamp) {
		return nil
	}
	lockName := filepath.Join(b.out, "build.lock")
	l, err := lock(lockName)
	if errors.Is(err, errLocked) {
		fmt.Fprintln(os.Stderr, "another build of the control plane runs; waiting for it")
		l, err = awaitLock(ctx, lockName)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if b.fresh(stamp) {
		return nil
	}
	if err := b.compile(ctx); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.out, stampFile), []byte(stamp), 0o600)
}

// stamp identifies everything that the result depends on. A derived module file
// follows from the version.
func (b *build) stamp() (string, error) {
	files, err := filepath.Glob(filepath.Join(b.source, "*.go"))
	if err != nil {
		return "", err
	}
	if !b.derived {
		files = append(files, b.modFile, strings.TrimSuffix(b.modFile, ".mod")+".sum")
	}
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOOS, runtime.GOARCH, b.flags(), b.components())
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // a file of the repository
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %x\n", filepath.Base(file), sha256.Sum256(text))
	}
	return fmt.Sprintf("%x\n", hash.Sum(nil)), nil
}

func (b *build) fresh(stamp string) bool {
	built, err := os.ReadFile(filepath.Join(b.out, stampFile))
	return err == nil && string(built) == stamp && controlplane.CheckAssets(b.out) == nil
}

// hasNode says whether the node's components are built. Only the tests with real
// nodes need them, and those run with the newest Kubernetes.
func (b *build) hasNode() bool {
	return runtime.GOOS == "linux" && b.isNewest()
}

// components are the names under which the binary is installed.
func (b *build) components() []string {
	names := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}
	if b.hasNode() {
		names = append(names, "kubelet", "kube-proxy")
	}
	return names
}

// flags are those of go build, and of go list to tell what go build would do.
// The version is in two packages; without it the API server takes itself for
// v0.0.0 and clients send no version.
func (b *build) flags() []string {
	number := numbersOf(b.version)
	link := []string{"-s", "-w"}
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		link = append(link,
			"-X", pkg+".gitVersion="+b.version,
			"-X", pkg+".gitMajor="+number[0],
			"-X", pkg+".gitMinor="+number[1],
			"-X", pkg+".gitCommit=",
			"-X", pkg+".gitTreeState=archive",
		)
	}
	flags := []string{"-trimpath", "-buildvcs=false", "-ldflags=" + strings.Join(link, " ")}
	if !b.isNewest() {
		file := b.modFile
		if relative, err := filepath.Rel(b.source, file); err == nil {
			file = relative // the same in every checkout, as the stamp has to be
		}
		flags = append(flags, "-modfile="+file)
	}
	if !b.hasNode() {
		flags = append(flags, "-tags=nonode")
	}
	if b.derived {
		flags = append(flags, "-mod=mod") // its checksums are added as they become known
	}
	return flags
}

func (b *build) compile(ctx context.Context) error {
	stop := b.progress.start()
	defer stop()
	b.progress.set("Kubernetes %s: looking at modules", b.version)
	stale, err := b.stalePackages(ctx)
	if err != nil {
		return err
	}
	if err := b.checkDisk(ctx, len(stale)); err != nil {
		return err
	}
	binary := filepath.Join(b.out, "hyperkube")
	if err := b.link(ctx, stale, binary+".new"); err != nil {
		return err
	}
	// A control plane that runs keeps the binary it was started from.
	if err := os.Rename(binary+".new", binary); err != nil {
		return err
	}
	for _, name := range b.components() {
		path := filepath.Join(b.out, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink("hyperkube", path); err != nil {
			return err
		}
	}
	b.progress.finish("Kubernetes %s built in %s", b.version, b.out)
	return nil
}

// stalePackages returns the import paths that have to be compiled. It downloads
// the modules on the way.
func (b *build) stalePackages(ctx context.Context) (map[string]bool, error) {
	if b.derived {
		if err := deriveModFile(ctx, b.version, b.modFile); err != nil {
			return nil, err
		}
	}
	format := fmt.Sprintf("{{if and .Stale (ne .StaleReason %q)}}{{.ImportPath}}{{end}}", availableReason)
	downloads := 0
	list := b.goCommand(ctx, slices.Concat([]string{"list", "-deps"}, b.flags(), []string{"-f", format, "."})...)
	out, err := b.runGo(ctx, list, func(line string) bool {
		module, ok := strings.CutPrefix(line, "go: downloading ")
		if ok {
			downloads++
			b.progress.set("downloading modules: %d so far, now %s", downloads, module)
		}
		return ok
	})
	if err != nil {
		return nil, err
	}
	stale := map[string]bool{}
	for path := range strings.FieldsSeq(out) {
		stale[path] = true
	}
	return stale, nil
}

// link compiles the stale packages and links the binary.
func (b *build) link(ctx context.Context, stale map[string]bool, binary string) error {
	if len(stale) == 0 {
		b.progress.set("linking")
	} else {
		b.progress.set("compiling: 0 of %d packages", len(stale))
	}
	compiled := 0
	compile := b.goCommand(ctx, slices.Concat([]string{"build", "-v", "-o", binary}, b.flags(), []string{"."})...)
	_, err := b.runGo(ctx, compile, func(line string) bool {
		if !stale[line] {
			return isImportPath(line)
		}
		compiled++
		if compiled < len(stale) {
			b.progress.set("compiling: %d of %d packages", compiled, len(stale))
		} else {
			b.progress.set("linking (%d packages compiled)", compiled)
		}
		return true
	})
	return err
}

// isImportPath tells the lines of go build -v from errors.
func isImportPath(line string) bool {
	return line != "" && !strings.ContainsAny(line, " :#\t")
}

func (b *build) goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the arguments are of this file
	cmd.Dir = b.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd
}

// runGo runs a go command and returns its output. Each line of its standard
// error goes to progress, which returns false for those that are not about progress;
// they become part of the error.
func (b *build) runGo(ctx context.Context, cmd *exec.Cmd, progress func(line string) bool) (string, error) {
	var out strings.Builder
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", explain(err, "")
	}
	var complaints strings.Builder
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !progress(lines.Text()) {
			fmt.Fprintln(&complaints, lines.Text())
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", explain(fmt.Errorf("go %s: %w", cmd.Args[1], err), complaints.String())
	}
	return out.String(), nil
}

// checkDisk refuses a build that would fill the disk.
func (b *build) checkDisk(ctx context.Context, stale int) error {
	cache, err := b.runGo(ctx, b.goCommand(ctx, "env", "GOCACHE"), func(string) bool { return false })
	if err != nil {
		return err
	}
	need := uint64(warmDiskBytes)
	if stale > coldPackages {
		need = coldDiskBytes
	}
	for _, dir := range []string{strings.TrimSpace(cache), b.out} {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			continue // the folder does not exist yet, or the filesystem does not tell
		}
		free := fs.Bavail * uint64(fs.Bsize) //nolint:gosec // a block size is positive
		if free < need {
			return fmt.Errorf("%s has %.1f GB free and this build needs about %d GB there: free some, or point GOCACHE (the build cache) or --out elsewhere",
				dir, float64(free)/(1<<30), need>>30)
		}
	}
	return nil
}

// hints tell what to do about the failures a developer can meet, by the words
// that the go command has for them; it has no codes.
var hints = []struct {
	words []string
	hint  string
}{
	{[]string{"requires go >=", "toolchain not available", "unknown directive"},
		"the Go installation is too old: install the version that hack/cluster/hyperkube/go.mod names, or set GOTOOLCHAIN=auto to let Go download it"},
	{[]string{"no space left on device"},
		"the disk is full: a first build needs about 6 GB in the build cache (go env GOCACHE), the module cache and the temporary folder together"},
	{[]string{"dial tcp", "no such host", "connection refused", "i/o timeout", "proxyconnect", "TLS handshake", "GOPROXY=off", "GOPROXY list is not the empty string"},
		"modules cannot be downloaded: check GOPROXY (go env GOPROXY) and the network, or copy bin/k8s from a machine of the same kind that has built it"},
	{[]string{"signal: killed"},
		"a compiler was killed, most likely for lack of memory: linking needs about 3.5 GB; close other programs, or set GOFLAGS=-p=1"},
	{[]string{"executable file not found"},
		"Go is not installed, or not in PATH: see https://go.dev/doc/install"},
}

// explain adds to an error of the go command what it printed and what to do.
func explain(err error, complaints string) error {
	if complaints = strings.TrimSpace(complaints); complaints != "" {
		err = fmt.Errorf("%w\n%s", err, complaints)
	}
	for _, h := range hints {
		if slices.ContainsFunc(h.words, func(words string) bool { return strings.Contains(err.Error(), words) }) {
			return fmt.Errorf("%w\n=> %s", err, h.hint)
		}
	}
	return err
}
