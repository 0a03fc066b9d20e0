/* NVIDIA's management library, by which Ray counts the cards of a computer, and torch says who uses a card's memory. */
#include <string.h>

enum { SUCCESS = 0 };

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *devices) { *devices = 1; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)4096; return SUCCESS; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
  strncpy(name, "Null H100", length);
  return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *processes, void *infos) { *processes = 0; return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
  total_free_used[0] = total_free_used[1] = 80ull * 1000 * 1000 * 1000;
  total_free_used[2] = 0;
  return SUCCESS;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) { *current = *pending = 0; return SUCCESS; }
