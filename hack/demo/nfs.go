package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/nfsserver"
)

// nfsSteps are the demonstration of the NFS driver.
var nfsSteps = []step{
	{"A Kubernetes control plane", (*demo).showControlPlane},
	{"Two NFS servers", (*demo).showServers},
	{"One Berth for both", (*demo).showBerthForNFS},
	{"A class for each server, and a claim of each class", (*demo).showSharedClaims},
	{"A claim that grows", (*demo).showGrowth},
	{"A server that does not answer", (*demo).showSilence},
	{"Delete and archive", (*demo).showNFSReclaim},
}

// servers are the NFS servers of the demonstration and what they export.
type servers struct {
	one, two       *nfsserver.Server
	oneDir, twoDir string
}

func (d *demo) showServers(ctx context.Context) error {
	if missing := nfsserver.Missing(); missing != "" {
		return errors.New(missing)
	}
	s := &servers{oneDir: filepath.Join(d.dir, "one"), twoDir: filepath.Join(d.dir, "two")}
	d.servers = s
	for _, server := range []struct {
		name, dir string
		into      **nfsserver.Server
	}{{"ONE", s.oneDir, &s.one}, {"TWO", s.twoDir, &s.two}} {
		if err := os.Mkdir(server.dir, 0o755); err != nil { //nolint:gosec // an export
			return err
		}
		running, err := nfsserver.Start(ctx, nfsserver.Options{
			Dir:     server.dir + ".state",
			Exports: []nfsserver.Export{{Path: server.dir, Pseudo: "/export"}},
		})
		if err != nil {
			return err
		}
		*server.into = running
		d.shell.env = append(d.shell.env, server.name+"="+server.dir, "PORT_"+server.name+"="+strconv.Itoa(int(running.Port)))
		d.Kept("NFS-Ganesha on %s:%d exports $%s as /export", nfsserver.Address, running.Port, server.name)
	}
	return nil
}

func (d *demo) showBerthForNFS(ctx context.Context) error {
	if err := d.show(ctx, "kubectl apply -k config/single-node"); err != nil {
		return err
	}
	d.Say("No server is named: the classes do that. Nothing is mounted:")
	if err := d.startBerth(ctx); err != nil {
		return err
	}
	d.Kept("it is ready")
	return nil
}

func (d *demo) showSharedClaims(ctx context.Context) error {
	began := time.Now()
	if err := d.show(ctx, `sed "s/PORT_ONE/$PORT_ONE/; s/PORT_TWO/$PORT_TWO/" hack/demo/nfs.yaml | kubectl apply -f -`); err != nil {
		return err
	}
	photos, err := d.awaitBound(ctx, "photos", began)
	if err != nil {
		return err
	}
	reports, err := d.awaitBound(ctx, "reports", began)
	if err != nil {
		return err
	}
	if err := d.show(ctx, "kubectl get pv -o custom-columns=CLAIM:.spec.claimRef.name,SERVER:.spec.nfs.server,PATH:.spec.nfs.path,MOUNT:.spec.mountOptions"); err != nil {
		return err
	}
	d.Say("Pods mount them over the same ports and in the same version. The directories:")
	if err := d.show(ctx, "ls -ln $ONE && find $TWO -mindepth 1 -not -path '*/.berth*' -printf '%M %U %G %P\\n'"); err != nil {
		return err
	}
	if err := d.expectShared(photos.volume, d.servers.oneDir, 0o2770, 2000); err != nil {
		return err
	}
	if err := d.expectShared(reports.volume, d.servers.twoDir, 0o770, 0); err != nil {
		return err
	}
	d.Kept("mode and owner are those of the class, the setgid bit too")
	return nil
}

// expectShared looks at the directory of a volume on a server.
func (d *demo) expectShared(volume *corev1.PersistentVolume, base string, mode, gid uint32) error {
	path := filepath.Join(base, volume.Annotations[request.AnnPath])
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	return expect(st.Mode == syscall.S_IFDIR|mode && st.Gid == gid, "%s has mode %#o and group %d", path, st.Mode, st.Gid)
}

func (d *demo) showGrowth(ctx context.Context) error {
	if err := d.show(ctx, `kubectl patch pvc photos -p '{"spec":{"resources":{"requests":{"storage":"5Gi"}}}}'`); err != nil {
		return err
	}
	err := d.await(ctx, "claim photos has 5Gi", func(ctx context.Context) error {
		claim, err := d.claim(ctx, "photos")
		if err != nil {
			return err
		}
		return expect(claim.Status.Capacity.Storage().String() == "5Gi", "it has %s", claim.Status.Capacity.Storage())
	})
	if err != nil {
		return err
	}
	const note = "the size is not enforced"
	if err := d.awaitEvent(ctx, "photos", "VolumeResizeSuccessful", note); err != nil {
		return err
	}
	d.Kept("the volume and the claim say 5Gi, and an event says that %s", note)
	return d.show(ctx, "kubectl get pvc photos")
}

func (d *demo) showSilence(ctx context.Context) error {
	d.Say("The second server stops answering, as after a pulled plug:")
	if err := d.servers.two.Pause(); err != nil {
		return err
	}
	began := time.Now()
	if err := d.show(ctx, "kubectl apply -f hack/demo/late.yaml"); err != nil {
		return err
	}
	if _, err := d.awaitBound(ctx, "unaffected", began); err != nil {
		return err
	}
	d.Kept("the other server's claim does not wait")
	text := fmt.Sprintf("server %s:%d did not answer within 5s", nfsserver.Address, d.servers.two.Port)
	if err := d.awaitEvent(ctx, "late", "ProvisioningFailed", text); err != nil {
		return err
	}
	d.Kept("claim late says: %s", text)
	d.Say("It comes back:")
	if err := d.servers.two.Resume(); err != nil {
		return err
	}
	_, err := d.awaitBound(ctx, "late", time.Now())
	return err
}

func (d *demo) showNFSReclaim(ctx context.Context) error {
	if err := d.show(ctx, "echo precious >$TWO/default/reports/file"); err != nil {
		return err
	}
	var volumes []string
	for _, name := range []string{"photos", "reports"} {
		claim, err := d.claim(ctx, name)
		if err != nil {
			return err
		}
		volumes = append(volumes, claim.Spec.VolumeName)
	}
	if err := d.show(ctx, "kubectl delete pvc photos reports"); err != nil {
		return err
	}
	for _, volume := range volumes {
		if err := d.awaitVolumePhase(ctx, volume, ""); err != nil {
			return err
		}
	}
	if err := d.expectNothing(filepath.Join(d.servers.oneDir, "default-photos-"+volumes[0])); err != nil {
		return err
	}
	d.Kept("class shared: the directory is gone")
	if err := d.expectContent(filepath.Join(d.servers.twoDir, ".berth", "archive", "default_reports-"+volumes[1], "file")); err != nil {
		return err
	}
	d.Kept("class archived: the directory is in the archive, with its file")
	return d.show(ctx, "ls -l $TWO/.berth/archive")
}

// close ends the servers.
func (s *servers) close() {
	for _, server := range []*nfsserver.Server{s.one, s.two} {
		if server != nil {
			server.Kill()
		}
	}
}
