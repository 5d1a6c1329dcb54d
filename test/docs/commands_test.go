package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// scripts are the fenced "sh" commands that are run, by the page and the
// anchors of the headings above them. Those of one script run in one shell.
var scripts = map[string]script{
	"process":    {page: "README.md", anchors: []string{"on-a-cluster-of-your-own"}},
	"local-path": {page: "docs/migration.md", anchors: []string{"once-make-its-directory-a-pool", "per-volume", "which-volumes-are-left"}},
	"back":       {page: "docs/migration.md", anchors: []string{"going-back"}},
	"default":    {page: "docs/migration.md", anchors: []string{"what-happens-to-existing-volumes"}},
	"kustomize":  {page: "docs/install.md", anchors: []string{"with-kustomize", "what-to-know-before"}},
	"uninstall":  {page: "docs/operations.md", anchors: []string{"uninstalling"}},
	"restore":    {page: "docs/operations.md", anchors: []string{"restore"}},
	"nfs":        {page: "docs/migration.md", anchors: []string{"once-make-the-share-berths-too", "per-volume-1"}},
}

// complete are the pages all of whose commands are run.
var complete = []string{"README.md", "docs/install.md", "docs/migration.md"}

// unrun are exceptions to that, by page and anchor, with the reason.
var unrun = map[string]string{
	"docs/install.md#the-image":   "there is no registry here; test/cluster makes the same image and loads it on nodes",
	"docs/install.md#with-helm":   "test/install does that on nodes, as pods are needed for helm test",
	"docs/install.md#removing-it": "test/install does that on nodes, by Helm and by kustomize",
}

type script struct {
	page    string
	anchors []string
}

// blocks returns the commands of a script.
func (s script) blocks(t *testing.T) []block {
	t.Helper()
	p := checkout(t).page(s.page)
	if p == nil {
		t.Fatalf("there is no page %s", s.page)
	}
	var blocks []block
	for _, anchor := range s.anchors {
		before := len(blocks)
		for _, b := range p.blocks {
			if b.anchor == anchor && b.language == "sh" {
				blocks = append(blocks, b)
			}
		}
		if len(blocks) == before {
			t.Errorf("%s has no commands under #%s: correct the table of scripts", s.page, anchor)
		}
	}
	return blocks
}

// TestCommandsAreRunSomewhere: those of the pages above are in a script, or are
// make targets that .ci/run makes, or are excused.
func TestCommandsAreRunSomewhere(t *testing.T) {
	r := checkout(t)
	ci, err := os.ReadFile(filepath.Join(r.root, ".ci", "run"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range complete {
		for _, b := range r.page(path).blocks {
			if b.language != "sh" || unrun[path+"#"+b.anchor] != "" || isScripted(path, b) || isMadeBy(string(ci), b.code) {
				continue
			}
			t.Errorf("%s: nothing runs these commands under #%s; add them to scripts, or to unrun with a reason:\n%s", path, b.anchor, b.code)
		}
	}
}

func isScripted(path string, b block) bool {
	for _, s := range scripts {
		if s.page == path && slices.Contains(s.anchors, b.anchor) {
			return true
		}
	}
	return false
}

// isMadeBy reports whether commands are make targets only, each of which ci makes.
func isMadeBy(ci, code string) bool {
	for _, line := range commandLines(strings.TrimSpace(code)) {
		command, _, _ := strings.Cut(line, " #")
		if command = strings.TrimSpace(command); !strings.HasPrefix(command, "make ") || !strings.Contains(ci, command+"\n") {
			return false
		}
	}
	return true
}

// TestReadmeMakesVolumesWithAProcess does what the README says for a cluster of
// one node, and makes a claim.
func TestReadmeMakesVolumesWithAProcess(t *testing.T) {
	s := newStage(t)
	s.replace("/srv/berth", s.path("pool"), "NODE", nodeName)
	blocks := scripts["process"].blocks(t)
	last := len(blocks) - 1
	for _, b := range blocks[:last] {
		s.add(b.code)
	}
	s.add("(\n" + blocks[last].code + ") &")
	s.add("kubectl apply -f config/samples/classes.yaml -f config/samples/claim-default.yaml")
	s.add("kubectl wait --for=jsonpath='{.status.phase}'=Bound --timeout=60s pvc/data")
	s.run()
	if made, err := os.ReadDir(s.path("pool")); err != nil || len(made) != 2 {
		t.Errorf("the pool holds %v, %v; want .berth and a volume", made, err)
	}
}

// TestLocalPathVolumesChangeHands follows docs/migration.md with a volume as
// local-path-provisioner makes them.
func TestLocalPathVolumesChangeHands(t *testing.T) {
	s := newStage(t)
	old := s.localPath()
	s.addScript("local-path")
	out := s.run()
	if !strings.Contains(out, "\nadopted=true node="+nodeName+"\n"+old+"\n") {
		t.Errorf("the new volume is not at %s:\n%s", old, out)
	}
	s.expectGone("pv/old-local-path")
	s.deleteClaimAndExpectFile(old)
}

// TestLocalPathVolumesGoBack undoes the same before the old volume is removed.
func TestLocalPathVolumesGoBack(t *testing.T) {
	s := newStage(t)
	old := s.localPath()
	for _, b := range scripts["local-path"].blocks(t) {
		if !strings.HasPrefix(b.code, "kubectl delete pv ") {
			s.add(b.code)
		}
	}
	s.addScript("back")
	s.add("kubectl get pvc data -o jsonpath='{.spec.volumeName} {.status.phase}'")
	if out := s.run(); !strings.HasSuffix(out, "old-local-path Bound") {
		t.Errorf("the claim does not have its old volume:\n%s", out)
	}
	s.deleteClaimAndExpectFile(old)
}

// localPath makes a volume of local-path-provisioner's, and starts a Berth that has
// its directory as a pool.
func (s *stage) localPath() string {
	s.t.Helper()
	old := filepath.Join(s.path("local-path"), "pvc-1_default_data")
	s.write(filepath.Join(old, "file"), "precious")
	s.write(filepath.Join(s.path("local-path"), "pvc-2_other_data", "file"), "somebody else's")
	s.replace("/opt/local-path-provisioner", s.path("local-path"))
	s.berth("--node-name="+nodeName, "--pool=local-path="+s.path("local-path"))
	s.oldVolume("local-path", "rancher.io/local-path", "local.path.provisioner/selected-node: "+nodeName,
		"hostPath: {path: "+old+", type: DirectoryOrCreate}\n  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: ["+nodeName+"]}]}]}}")
	return old
}

// TestNFSVolumesChangeHands is the same for nfs-subdir-external-provisioner.
func TestNFSVolumesChangeHands(t *testing.T) {
	s := newStage(t)
	export := s.path("export")
	old := filepath.Join(export, "default-data-pvc-1")
	s.write(filepath.Join(old, "file"), "precious")
	port := s.exportNFS(export)
	s.replace("mkdir /export/k8s", "mkdir "+export, "cd /export/k8s", "cd "+export, "nas.example.com", "127.0.0.1",
		"mountOptions: [nfsvers=4.1]", fmt.Sprintf("mountOptions: [nfsvers=4.1, port=%d]", port))
	s.berth()
	s.oldVolume("nfs-client", "cluster.local/nfs-subdir-external-provisioner", "example.com/x: none",
		"nfs: {server: 127.0.0.1, path: /export/k8s/default-data-pvc-1}")
	s.addScript("nfs")
	out := s.run()
	if !strings.Contains(out, "\nadopted=true\n/export/k8s/restored/default/data\n") {
		t.Errorf("the new volume is not the old directory:\n%s", out)
	}
	s.deleteClaimAndExpectFile(filepath.Join(export, "restored", "default", "data"))
}

// TestArchivedVolumesAreRestored follows docs/operations.md with a volume that Berth
// has archived.
func TestArchivedVolumesAreRestored(t *testing.T) {
	s := newStage(t)
	pool := s.path("pool")
	s.replace("cd /var/lib/berth", "cd "+pool)
	s.berth("--node-name="+nodeName, "--pool=default="+pool)
	s.add(`kubectl apply -f - <<'EOF'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: archived}
provisioner: hostpath.berth.storage
parameters: {onDelete: archive}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: reports, namespace: default}
spec: {storageClassName: archived, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
EOF
kubectl wait --for=jsonpath='{.status.phase}'=Bound --timeout=60s pvc/reports
volume=$(kubectl get pvc reports -o jsonpath='{.spec.volumeName}')
printf precious >"$(kubectl get pv "$volume" -o jsonpath='{.spec.local.path}')/file"
kubectl delete pvc reports
kubectl wait --for=delete --timeout=60s "pv/$volume"`)
	// The page has a name for an example.
	s.add("mv " + pool + "/.berth/archive/default-reports-$volume " + pool + "/.berth/archive/default-reports-pvc-8f14e45f-ceea-467f-9fc5-1d5e3a7a1b2c")
	s.addScript("restore")
	s.add(`timeout 60 bash -c 'until kubectl describe pvc reports | grep "adopted the directory"; do sleep 0.1; done'`) // events take their time
	restored := filepath.Join(pool, "restored", "default", "reports")
	out := s.run()
	for _, want := range []string{"adopted=true node=" + nodeName + " path=" + restored + "\n", `adopted the directory "restored/default/reports" with what is in it on node ` + nodeName} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if content, err := os.ReadFile(filepath.Join(restored, "file")); err != nil || string(content) != "precious" {
		t.Errorf("the file holds %q, %v", content, err)
	}
}

// TestDefaultClassIsSwitched: the next claim without a class is Berth's.
func TestDefaultClassIsSwitched(t *testing.T) {
	s := newStage(t)
	s.add(`kubectl apply -f config/samples/classes.yaml -f - <<<'{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: local-path, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}, provisioner: rancher.io/local-path}'`)
	s.addScript("default")
	s.add(`kubectl get storageclass -o custom-columns='NAME:.metadata.name,DEFAULT:.metadata.annotations.storageclass\.kubernetes\.io/is-default-class'`)
	out := strings.Join(strings.Fields(s.run()), " ")
	for _, want := range []string{"berth-hostpath true", "local-path false"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
}

// TestKustomizeInstalls does what docs/install.md says for kustomize, as far as an
// API server without nodes can tell.
func TestKustomizeInstalls(t *testing.T) {
	s := newStage(t)
	s.addScript("kustomize")
	s.add("kubectl -n berth-system get -o name deployment/berth-controller daemonset/berth-agent storageclass/berth-hostpath")
	s.add(`kubectl get namespace berth-system -o jsonpath='{.metadata.labels.pod-security\.kubernetes\.io/enforce}'`)
	if out := s.run(); !strings.HasSuffix(out, "privileged") {
		t.Errorf("the namespace is not labelled:\n%s", out)
	}
}

// TestVolumesOfNobodyGo: where Berth was removed, docs/operations.md has a way to
// end a PersistentVolume that waits for it.
func TestVolumesOfNobodyGo(t *testing.T) {
	s := newStage(t)
	s.replace("pv NAME", "pv left")
	s.add(`kubectl apply -f - <<'EOF'
apiVersion: v1
kind: PersistentVolume
metadata: {name: left, finalizers: [external-provisioner.volume.kubernetes.io/finalizer]}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  persistentVolumeReclaimPolicy: Retain
  hostPath: {path: /srv/berth/left}
EOF
kubectl wait --for=jsonpath='{.status.phase}'=Available --timeout=60s pv/left
kubectl delete pv left --wait=false
kubectl get pv left -o name`)
	s.addScript("uninstall")
	s.add("kubectl wait --for=delete --timeout=60s pv/left")
	s.run()
	s.expectGone("pv/left")
}
