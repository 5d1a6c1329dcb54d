package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// step is a part of a demonstration. It fails when what it promises does not
// happen.
type step struct {
	title string
	play  func(*demo, context.Context) error
}

// steps are the demonstration of the hostpath driver.
var steps = []step{
	{"A Kubernetes control plane", (*demo).showControlPlane},
	{"Berth, on that node", (*demo).showBerth},
	{"Storage classes", (*demo).showClasses},
	{"A claim that names no class", (*demo).showDefaultClass},
	{"A claim that waits for its first pod", (*demo).showFirstConsumer},
	{"Delete and Retain", (*demo).showReclaim},
	{"Archive instead of delete", (*demo).showArchive},
	{"A class with a mistake", (*demo).showRefusal},
}

func (d *demo) showControlPlane(ctx context.Context) error {
	d.Say("Real etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as child processes:")
	if err := d.open(ctx); err != nil {
		return err
	}
	d.Say("There is no kubelet. One Node object stands in for this machine: pods get\nscheduled to it, and never run.")
	if err := d.addNode(ctx); err != nil {
		return err
	}
	return d.show(ctx, "kubectl get nodes")
}

func (d *demo) showBerth(ctx context.Context) error {
	d.Say("It gets a namespace, an account, and the few rights it needs:")
	if err := d.show(ctx, "kubectl apply -k config/single-node"); err != nil {
		return err
	}
	d.Say("One process is all. $POOL is an empty directory, where the volumes go:")
	if err := d.startBerth(ctx); err != nil {
		return err
	}
	d.Kept("it is ready")
	return nil
}

func (d *demo) showClasses(ctx context.Context) error {
	if err := d.show(ctx, "kubectl apply -f config/samples/classes.yaml"); err != nil {
		return err
	}
	return d.show(ctx, "kubectl get storageclasses")
}

func (d *demo) showDefaultClass(ctx context.Context) error {
	began := time.Now()
	if err := d.show(ctx, "kubectl apply -f config/samples/claim-default.yaml"); err != nil {
		return err
	}
	b, err := d.awaitBound(ctx, "data", began)
	if err != nil {
		return err
	}
	const class = "berth-hostpath-immediate"
	if got := classOf(b.claim); got != class {
		return expect(false, "the claim's class is %q, the default is %q", got, class)
	}
	d.Kept("it was given the default class, %s", class)
	if err := d.show(ctx, "kubectl get pvc"); err != nil {
		return err
	}
	d.Say("The volume is a directory, for its owner and group alone:")
	if err := d.show(ctx, "ls -l $POOL"); err != nil {
		return err
	}
	return d.expectDirectory(b.volume, 0o770)
}

func (d *demo) showFirstConsumer(ctx context.Context) error {
	if err := d.show(ctx, "kubectl apply -f config/samples/claim-wait.yaml"); err != nil {
		return err
	}
	if err := d.awaitEvent(ctx, "web", "WaitForFirstConsumer", "waiting for first consumer"); err != nil {
		return err
	}
	claim, err := d.claim(ctx, "web")
	if err != nil {
		return err
	}
	if err := expect(claim.Status.Phase == corev1.ClaimPending, "without a pod the claim is %s, not Pending", claim.Status.Phase); err != nil {
		return err
	}
	if err := d.show(ctx, "kubectl get pvc web"); err != nil {
		return err
	}
	d.Kept("it is Pending, and has no volume, until a pod says where it is needed")
	began := time.Now()
	if err := d.show(ctx, "kubectl apply -f config/samples/pod.yaml"); err != nil {
		return err
	}
	b, err := d.awaitBound(ctx, "web", began)
	if err != nil {
		return err
	}
	if err := d.expectDirectory(b.volume, 0o770); err != nil {
		return err
	}
	err = d.await(ctx, "pod web is scheduled", func(ctx context.Context) error {
		pod, err := d.client.CoreV1().Pods(namespace).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		return expect(pod.Spec.NodeName == nodeName, "it is on node %q", pod.Spec.NodeName)
	})
	if err != nil {
		return err
	}
	d.Kept("kube-scheduler chose the node, the volume was made there, the pod is placed")
	if err := d.show(ctx, "kubectl get pod web -o wide"); err != nil {
		return err
	}
	d.Say("The pod stays Pending here: a kubelet would start it now.")
	return nil
}

func (d *demo) showReclaim(ctx context.Context) error {
	began := time.Now()
	if err := d.show(ctx, "kubectl apply -f config/samples/claim-retain.yaml"); err != nil {
		return err
	}
	kept, err := d.awaitBound(ctx, "ledger", began)
	if err != nil {
		return err
	}
	data, err := d.claim(ctx, "data")
	if err != nil {
		return err
	}
	gone, err := d.client.CoreV1().PersistentVolumes().Get(ctx, data.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	d.Say("Somebody writes to both volumes, then deletes both claims:")
	for _, volume := range []*corev1.PersistentVolume{kept.volume, gone} {
		if err := d.show(ctx, "echo precious >$POOL/"+d.pathOf(volume)+"/file"); err != nil {
			return err
		}
	}
	if err := d.show(ctx, "kubectl delete pvc data ledger"); err != nil {
		return err
	}
	if err := d.awaitVolumePhase(ctx, gone.Name, ""); err != nil {
		return err
	}
	if err := d.expectNothing(filepath.Join(d.pool, d.pathOf(gone))); err != nil {
		return err
	}
	if err := d.awaitEmptyTrash(ctx); err != nil {
		return err
	}
	d.Kept("policy Delete: the volume and its directory are gone")
	if err := d.awaitVolumePhase(ctx, kept.volume.Name, corev1.VolumeReleased); err != nil {
		return err
	}
	if err := d.expectContent(filepath.Join(d.pool, d.pathOf(kept.volume), "file")); err != nil {
		return err
	}
	d.Kept("policy Retain: the volume is Released, its directory and the file in it are still there")
	if err := d.show(ctx, "kubectl get pv"); err != nil {
		return err
	}
	return d.show(ctx, "ls -l $POOL")
}

func (d *demo) showArchive(ctx context.Context) error {
	began := time.Now()
	if err := d.show(ctx, "kubectl apply -f config/samples/claim-archive.yaml"); err != nil {
		return err
	}
	b, err := d.awaitBound(ctx, "reports", began)
	if err != nil {
		return err
	}
	const path = "default/reports"
	if err := expect(d.pathOf(b.volume) == path, "the directory is %s, not %s", d.pathOf(b.volume), path); err != nil {
		return err
	}
	d.Kept("pathPattern: the directory is %s", path)
	if err := d.show(ctx, "echo precious >$POOL/"+path+"/file"); err != nil {
		return err
	}
	if err := d.show(ctx, "kubectl delete pvc reports"); err != nil {
		return err
	}
	if err := d.awaitVolumePhase(ctx, b.volume.Name, ""); err != nil {
		return err
	}
	if err := d.expectNothing(filepath.Join(d.pool, path)); err != nil {
		return err
	}
	archived := filepath.Join(".berth", "archive", "default_reports-"+b.volume.Name)
	if err := d.expectContent(filepath.Join(d.pool, archived, "file")); err != nil {
		return err
	}
	d.Kept("onDelete archive: the directory left its place and is in the archive, with its file")
	return d.show(ctx, "ls -l $POOL/.berth/archive")
}

func (d *demo) showRefusal(ctx context.Context) error {
	if err := d.show(ctx, "kubectl apply -f config/samples/refused.yaml"); err != nil {
		return err
	}
	const text = "there is no such parameter; known are "
	if err := d.awaitEvent(ctx, "refused", "ProvisioningFailed", text); err != nil {
		return err
	}
	d.Kept("the claim says what is wrong, and what to write instead")
	const describe = "kubectl describe pvc refused"
	d.Command(describe)
	output, err := d.shell.run(ctx, describe)
	if err != nil {
		return err
	}
	events := fromLine(output, "Events:")
	if err := expect(strings.Contains(events, text), "kubectl describe does not show the event:\n%s", output); err != nil {
		return err
	}
	d.Output("[...]\n" + events)
	claim, err := d.claim(ctx, "refused")
	if err != nil {
		return err
	}
	return expect(claim.Spec.VolumeName == "", "the claim has volume %q", claim.Spec.VolumeName)
}

// show runs a command and shows it with its output.
func (d *demo) show(ctx context.Context, line string) error {
	d.Command(line)
	output, err := d.shell.run(ctx, line)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	d.Output(output)
	return nil
}

// pathOf is a volume's directory, relative to the pool.
func (d *demo) pathOf(volume *corev1.PersistentVolume) string {
	if volume.Spec.Local == nil {
		return ""
	}
	path, err := filepath.Rel(d.pool, volume.Spec.Local.Path)
	if err != nil {
		return ""
	}
	return path
}

func (d *demo) expectDirectory(volume *corev1.PersistentVolume, mode fs.FileMode) error {
	path := filepath.Join(d.pool, d.pathOf(volume))
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return expect(path != d.pool && info.IsDir() && info.Mode().Perm() == mode, "%s is %s, not a directory of mode %#o", path, info.Mode(), mode)
}

func (d *demo) expectNothing(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return expect(false, "%s is still there (%v)", path, err)
}

// awaitEmptyTrash waits for what Berth does behind: a deleted directory is moved
// to the trash, and emptied there.
func (d *demo) awaitEmptyTrash(ctx context.Context) error {
	return d.await(ctx, "the trash is empty", func(context.Context) error {
		entries, err := os.ReadDir(filepath.Join(d.pool, ".berth", "trash"))
		if err != nil {
			return err
		}
		return expect(len(entries) == 0, "it holds %d entries", len(entries))
	})
}

// expectContent looks for what showReclaim and showArchive write.
func (d *demo) expectContent(path string) error {
	text, err := os.ReadFile(path) //nolint:gosec // in a folder of its own
	if err != nil {
		return fmt.Errorf("what was written is lost: %w", err)
	}
	return expect(string(text) == "precious\n", "%s holds %q", path, text)
}

func classOf(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.StorageClassName == nil {
		return ""
	}
	return *claim.Spec.StorageClassName
}

// fromLine returns text from the first line that begins with prefix on; all of
// it when there is none.
func fromLine(text, prefix string) string {
	if strings.HasPrefix(text, prefix) {
		return text
	}
	if i := strings.Index(text, "\n"+prefix); i >= 0 {
		return text[i+1:]
	}
	return text
}
