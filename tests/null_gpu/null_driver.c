/* The calls of the CUDA driver whose results torch reads. build.py adds a function for every other call. */

enum { SUCCESS = 0 };

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return SUCCESS;
}
int cuCtxGetCurrent(void **context) { *context = (void *)4096; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = "null"; return SUCCESS; }
