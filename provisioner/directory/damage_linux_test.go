package directory_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
)

// run runs a program and returns what it has said.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var place = regexp.MustCompile(`located at block (\d+), offset (0x[0-9a-f]+)`)

// ruinInode damages one inode of an ext4 image that is not mounted.
func ruinInode(t *testing.T, image string, number uint64) {
	t.Helper()
	found := place.FindStringSubmatch(run(t, "debugfs", "-R", "imap <"+strconv.FormatUint(number, 10)+">", image))
	if found == nil {
		t.Fatal("debugfs does not say where the inode is")
	}
	block, err := strconv.ParseInt(found[1], 10, 64)
	must(t, err)
	offset, err := strconv.ParseInt(found[2], 0, 64)
	must(t, err)
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	var size [4]byte // log2 of the block size in KiB, in the superblock
	_, err = file.ReadAt(size[:], 1024+24)
	must(t, err)
	_, err = file.WriteAt([]byte{0x55, 0xaa, 0x55}, block<<(10+binary.LittleEndian.Uint32(size[:]))+offset+8)
	must(t, err)
}

// One inode of a disk goes bad: ext4 says so when it is read.
func TestInodeOfAMarkerThatIsDamagedOnDisk(t *testing.T) {
	needRoot(t)
	for _, tool := range []string{"mkfs.ext4", "debugfs", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs e2fsprogs and mount: %v", err)
		}
	}
	image, base := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	run(t, "mkfs.ext4", "-q", "-F", image)
	mount := func() {
		if out, err := exec.Command("mount", "-o", "loop,errors=continue", image, base).CombinedOutput(); err != nil {
			t.Skipf("can't mount an image here: %v: %s", err, out)
		}
	}
	mount()
	mounted := true
	t.Cleanup(func() {
		if mounted {
			run(t, "umount", base)
		}
	})
	b := &bench{t: t, base: base, pool: newPool(t, base), ctx: t.Context()}
	for _, n := range []string{"1", "2", "3"} {
		b.create(volumeAt("pvc-"+n, "vol-"+n))
	}
	must(t, b.pool.Close())
	number := inodeNumber(t, b.path(".berth/volumes/pvc-2.json"))
	run(t, "umount", base)
	mounted = false
	ruinInode(t, image, number)
	mount()
	mounted = true

	b.pool = newPool(t, base)
	b.create(volumeAt("pvc-4", "vol-4"))
	volumes, told := listed(b.pool, b.ctx)
	if diff := cmp.Diff([]string{"pvc-1", "pvc-3", "pvc-4"}, volumes); diff != "" {
		t.Error(diff)
	}
	wantError(t, "Volumes", told, directory.ErrDamagedMarker)
	t.Log(told)
	must(t, b.delete(volumeAt("pvc-1", "vol-1")))
	wantError(t, "Delete", b.delete(volumeAt("pvc-2", "vol-2")), directory.ErrDamagedMarker)
	must(t, b.pool.Close())
}

func inodeNumber(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}
